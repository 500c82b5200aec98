"""Gates: the rules an engine must keep to ship, how they are written, named together and judged."""
