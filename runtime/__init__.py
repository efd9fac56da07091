"""What makes the method fast, distributed, unkillable or pretty: to be skipped at first."""
