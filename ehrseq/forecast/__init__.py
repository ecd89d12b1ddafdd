"""From hazards to forecasts."""
