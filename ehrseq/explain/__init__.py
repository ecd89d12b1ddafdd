"""Which past events moved a forecast, and what it would be with another history. Attention weights play no part."""
