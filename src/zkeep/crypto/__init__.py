"""Keys, encryption and MACs. The only room that decrypts; the pool cannot import it."""
