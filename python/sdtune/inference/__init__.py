"""Drawing pictures with what was learned."""
