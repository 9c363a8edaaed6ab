"""Fine-tuning methods: what is learned, and how it is saved."""
