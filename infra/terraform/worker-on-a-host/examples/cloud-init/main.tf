# User data of hosts that another module creates: here for EC2 instances, which join by their IAM role.

terraform {
  required_version = ">= 1.11"
}

variable "package_sha256" {
  description = "SHA-256 of the package, from the release."
  type        = string
}

module "worker" {
  source = "../.."

  package = {
    url    = "https://packages.example.com/airbridge-worker.tar.gz"
    sha256 = var.package_sha256
  }

  gateway_url    = "https://gateway.example.com:8443"
  ca_certificate = file("${path.module}/ca.crt")
  region         = "eu-west-1"
  join_method    = "aws_iam"
  slots          = 8
}

output "user_data" {
  description = "For user_data of aws_launch_template, azurerm_linux_virtual_machine or google_compute_instance."
  value       = module.worker.cloud_init
}
