"""How the embedded model was made: its drawings and its training. Stays on the control node."""
