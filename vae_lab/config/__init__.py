"""The config: schema, validation against target signatures, error messages, allow-list for stored configs."""
