"""How many calibration images a model needs, how much the draw of them moves the result, and what images of another domain do."""
