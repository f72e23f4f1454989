# Workers of the region factory-7 in the cluster of the current kubeconfig context.

terraform {
  required_version = ">= 1.11"

  required_providers {
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.1"
    }
  }
}

provider "helm" {
  kubernetes = {
    config_path = "~/.kube/config"
  }
}

variable "image_digest" {
  description = "Digest of the image edge-worker in the release's release.json."
  type        = string
}

module "worker" {
  source = "../.."

  namespace = "airbridge"
  image = {
    repository = "registry.example.com/edge-worker"
    digest     = var.image_digest
  }
  gateway_url   = "https://gateway.example.com:8443"
  ca_config_map = "airbridge-ca"
  region        = "factory-7"
  name_prefix   = "cluster-2-"
  join = {
    method   = "kubernetes"
    audience = "airbridge.example.com"
  }

  slots = 8
  slot = {
    memory_mib = 2048
    cpus       = 0.5
  }
  resources = {
    requests = { cpu = "4", memory = "18Gi" }
    limits   = { memory = "18Gi" }
  }
  settings    = { prefetch = 2, journal_fsync = true }
  persistence = { size = "50Gi" }
  tolerations = [{ key = "gpu", operator = "Exists", effect = "NoSchedule" }]
  autoscaling = {
    prometheus   = "http://prometheus.monitoring:9090"
    max_replicas = 40
  }
}

output "service_account_name" {
  value = module.worker.service_account_name
}
