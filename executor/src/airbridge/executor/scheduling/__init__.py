"""The executor's part in the scheduler's loop: reconciler, database listener, interruptible sleep, throttle."""
