"""What a host has: processor, NUMA nodes, memory, libraries, network link, and ssh to other hosts."""
