"""What a host has: processor, NUMA nodes, memory, ssh."""
