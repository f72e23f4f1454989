# A worker on a host that Terraform reaches by SSH.

terraform {
  required_version = ">= 1.11"
}

variable "package_sha256" {
  description = "SHA-256 of the package, from the release."
  type        = string
}

variable "join_token" {
  description = "Join token; set TF_VAR_join_token."
  type        = string
  ephemeral   = true
  sensitive   = true
}

module "worker" {
  source = "../.."

  ssh = {
    host     = "press-1.factory.example.com"
    user     = "admin"
    host_key = trimspace(file("${path.module}/press-1.pub"))
  }
  package = {
    file   = "${path.module}/airbridge-worker.tar.gz"
    sha256 = var.package_sha256
  }

  gateway_url    = "https://gateway.example.com:8443"
  ca_certificate = file("${path.module}/ca.crt")
  region         = "factory-7"
  name           = "press-1"
  join_method    = "bound_key"
  join_token     = var.join_token
  slots          = 8
  settings       = { slot_memory_mib = 2048 }
}
