"""Whether a registered version takes the champion's place: the gate decides, the champion is moved."""
