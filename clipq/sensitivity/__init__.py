"""Which blocks of a tower suffer most from INT8, and which must stay unquantized so that a bound holds."""
