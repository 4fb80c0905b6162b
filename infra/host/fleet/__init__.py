"""The fleet as the host hears it: devices' reports and presence, by MQTT and HTTP, kept in the database in batches."""
