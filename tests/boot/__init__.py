"""What Terraform made, booted on this machine: ECS's tasks from their definitions, instances from their user data (`make infra-boot`)."""
