"""Every knob of visiongraft: schema, YAML files, strict loader. No heavy imports."""
