"""What other frameworks need to use x402tools; each module imports its own framework."""
