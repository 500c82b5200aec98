"""The name of the form of a verification, ``verify.schema.json`` beside this file."""

SCHEMA = "clipq.verify/1"
