"""What the events of each topic look like, as JSON Schema and as Avro, made from the contracts (`make generate`)."""
