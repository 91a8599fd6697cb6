"""Prometheus and Grafana: what to scrape, when to be woken, and a dashboard of a run."""
