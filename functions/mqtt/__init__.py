"""Messages to the broker. The only folder that may load paho."""
