"""What the endpoint answers: request and answer types, recommendation, reasons, feedback, the bundle."""
