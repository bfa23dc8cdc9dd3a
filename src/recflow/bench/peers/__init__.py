"""What is trained beside each other by `recflow bench train`, each in a process of its own."""
