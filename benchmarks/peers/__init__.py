"""What x402tools is measured beside: other packages, and the limits that nothing on this machine can be below."""
