"""Holds every pipeline file against the JSON Schema that `pipe schema` prints, as editors do.

usage: pipe schema | check_schema.py PIPELINE.toml ...
"""

import json
import sys
import tomllib
from pathlib import Path

import jsonschema

schema = json.load(sys.stdin)
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)

for name in sys.argv[1:]:
    pipeline = tomllib.loads(Path(name).read_text())
    errors = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(pipeline)]
    assert not errors, f"{name}:\n" + "\n".join(errors)
    # A schema that accepts everything would say nothing.
    stage = next(iter(pipeline["stage"].values()))
    stage["parms"] = {}
    assert not validator.is_valid(pipeline), f"{name}: an unknown key is accepted"
    print(f"{name} fits the schema")
