"""Operations: status, health, metrics, events, doctor."""
