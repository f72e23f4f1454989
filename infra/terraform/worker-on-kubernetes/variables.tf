# Release

variable "release_name" {
  description = "Name of the Helm release. Pods are called <release_name>-airbridge-worker-<number>, which is also the worker's name, after name_prefix."
  type        = string
  default     = "edge"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?$", var.release_name))
    error_message = "release_name must be lower-case letters, digits and hyphens, at most 53 characters."
  }
}

variable "namespace" {
  description = "Namespace of the release."
  type        = string
  default     = "airbridge"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace must be lower-case letters, digits and hyphens, at most 63 characters."
  }
}

variable "create_namespace" {
  description = "Whether Helm creates the namespace. The join secret and the CA's ConfigMap must then be created after it; a namespace made beside the module can have Pod Security's labels."
  type        = bool
  default     = false
  nullable    = false
}

variable "chart" {
  description = "Chart: a folder, an archive, an oci:// reference, or a name in chart_repository. Null is the chart of this repository, by its path."
  type        = string
  default     = null
}

variable "chart_repository" {
  description = "URL of the repository that chart is a name in."
  type        = string
  default     = null
}

variable "chart_version" {
  description = "Exact version of the chart, for a chart from a repository or registry."
  type        = string
  default     = null

  validation {
    condition     = var.chart_version == null || can(regex("^[0-9]+[.][0-9]+[.][0-9]+", var.chart_version))
    error_message = "chart_version must be an exact version: a range installs what was published last."
  }

  validation {
    condition     = var.chart_repository == null || (var.chart != null && var.chart_version != null)
    error_message = "chart_repository needs chart and chart_version."
  }
}

variable "wait" {
  description = "Whether an apply waits until all pods are ready."
  type        = bool
  default     = true
  nullable    = false
}

variable "timeout_seconds" {
  description = "Longest duration of an apply. Null leaves time for each pod's drain in turn: (drain_seconds + 300) * replicas."
  type        = number
  default     = null

  validation {
    condition     = var.timeout_seconds == null || try(var.timeout_seconds >= 1, false)
    error_message = "timeout_seconds must be at least 1."
  }
}

variable "extra_values" {
  description = "Further documents of values (YAML) that take precedence over what the module makes."
  type        = list(string)
  default     = []
  nullable    = false
}

# Worker

variable "image" {
  description = "Worker's image, by digest: a tag can be moved to something else."
  type = object({
    repository  = string
    digest      = string
    pull_policy = optional(string, "IfNotPresent")
  })
  nullable = false

  validation {
    condition     = can(regex("^[^@ ]+$", var.image.repository))
    error_message = "image.repository must be a repository without a digest, such as registry.example.com/edge-worker."
  }

  validation {
    condition     = can(regex("^sha256:[0-9a-f]{64}$", var.image.digest))
    error_message = "image.digest must be sha256: and 64 hexadecimal digits, as release.json names it."
  }

  validation {
    condition     = contains(["Always", "IfNotPresent", "Never"], var.image.pull_policy)
    error_message = "image.pull_policy must be Always, IfNotPresent or Never."
  }
}

variable "image_pull_secrets" {
  description = "Names of Secrets of the registry."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "gateway_url" {
  description = "URL of the gateway's port for workers."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^https://[^/]+/?$", var.gateway_url))
    error_message = "gateway_url must be https:// and a host, with its port if it is not 443, and no path."
  }
}

variable "ca_certificate" {
  description = "PEM of the roots that the gateway's certificate chains to. Either this or ca_config_map."
  type        = string
  default     = null

  validation {
    condition     = var.ca_certificate == null || can(regex("-----BEGIN CERTIFICATE-----", var.ca_certificate))
    error_message = "ca_certificate must be PEM: its text, not the path of a file."
  }

  validation {
    condition     = (var.ca_certificate == null) != (var.ca_config_map == null)
    error_message = "Exactly one of ca_certificate and ca_config_map is needed."
  }
}

variable "ca_config_map" {
  description = "Name of a ConfigMap with the roots under the key ca.crt."
  type        = string
  default     = null
}

variable "region" {
  description = "Region of the workers, as in the region catalogue."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.region))
    error_message = "region must be lower-case letters, digits and hyphens, as in the region catalogue."
  }
}

variable "pool" {
  description = "Pool of the workers."
  type        = string
  default     = "default"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.pool))
    error_message = "pool must be lower-case letters, digits and hyphens, as in the region catalogue."
  }
}

variable "name_prefix" {
  description = "Text before the pods' names in the workers' names, so that several clusters can serve one pool."
  type        = string
  default     = null

  validation {
    condition     = var.name_prefix == null || can(regex("^([a-z0-9][a-z0-9-]{0,30})?$", var.name_prefix))
    error_message = "name_prefix must be lower-case letters, digits and hyphens, at most 31 characters."
  }
}

variable "join" {
  description = "How pods join: method token (with the join token in secret, which needs a use for each start of a pod), bound_key (by the key on the pod's volume, which a token in secret or an operator binds) or kubernetes (by a projected token of the service account for audience). secret is the name of a Secret with the key token: no secret passes through Terraform."
  type = object({
    method             = optional(string, "token")
    secret             = optional(string)
    audience           = optional(string)
    expiration_seconds = optional(number)
  })
  nullable = false

  validation {
    condition     = contains(["token", "bound_key", "kubernetes"], var.join.method)
    error_message = "join.method must be token, bound_key or kubernetes."
  }

  validation {
    condition     = var.join.method != "token" || try(length(var.join.secret) > 0, false)
    error_message = "join.method token needs join.secret, the name of a Secret with the key token."
  }

  validation {
    condition     = var.join.method != "kubernetes" || (try(length(var.join.audience) > 0, false) && var.join.secret == null)
    error_message = "join.method kubernetes needs join.audience, and takes no join.secret."
  }

  validation {
    condition     = var.join.expiration_seconds == null || try(var.join.expiration_seconds >= 600 && var.join.expiration_seconds <= 86400, false)
    error_message = "join.expiration_seconds must be between 600 and 86400."
  }
}

variable "service_account" {
  description = "Service account of the pods: whether the chart creates it, and its name. Tasks get no token of it."
  type = object({
    create = optional(bool)
    name   = optional(string)
  })
  default  = {}
  nullable = false
}

variable "slots" {
  description = "Tasks of a worker at one time."
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.slots >= 1 && floor(var.slots) == var.slots
    error_message = "slots must be a whole number of at least 1."
  }
}

variable "slot" {
  description = "What the task of one slot may use. The limits of resources must hold all slots and about 1 GiB for the worker itself."
  type = object({
    memory_mib = optional(number)
    cpus       = optional(number)
    processes  = optional(number)
    disk_mib   = optional(number)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.slot.memory_mib == null || try(var.slot.memory_mib >= 16, false)
    error_message = "slot.memory_mib must be at least 16."
  }

  validation {
    condition     = var.slot.cpus == null || try(var.slot.cpus > 0, false)
    error_message = "slot.cpus must be more than 0."
  }

  validation {
    condition     = var.slot.processes == null || try(var.slot.processes >= 8, false)
    error_message = "slot.processes must be at least 8."
  }

  validation {
    condition     = var.slot.disk_mib == null || try(var.slot.disk_mib >= 1, false)
    error_message = "slot.disk_mib must be at least 1."
  }
}

variable "resources" {
  description = "Requests and limits of a pod. Null is the chart's default."
  type = object({
    requests = optional(map(string))
    limits   = optional(map(string))
  })
  default = null
}

variable "settings" {
  description = "Further settings of the worker by name (docs/reference/worker-settings.md): texts, numbers and booleans."
  type        = any
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^[a-z][a-z0-9_]*$", name))])
    error_message = "settings must be an object whose names are settings of the worker."
  }
}

variable "extra_env" {
  description = "Variables of the container, as Kubernetes' EnvVar."
  type        = any
  default     = null
}

variable "extra_env_from" {
  description = "Sources of variables, as Kubernetes' EnvFromSource."
  type        = any
  default     = null
}

# Pods

variable "replicas" {
  description = "Workers while nothing scales them."
  type        = number
  default     = 1
  nullable    = false

  validation {
    condition     = var.replicas >= 0 && floor(var.replicas) == var.replicas
    error_message = "replicas must be a whole number of at least 0."
  }
}

variable "persistence" {
  description = "Volume of a worker's journal: what it has done and not reported yet is nowhere else."
  type = object({
    size          = optional(string)
    storage_class = optional(string)
  })
  default  = {}
  nullable = false
}

variable "drain_seconds" {
  description = "Time that running tasks have to finish when a worker stops. It takes no new work meanwhile."
  type        = number
  default     = 3600
  nullable    = false

  validation {
    condition     = var.drain_seconds >= 30
    error_message = "drain_seconds must be at least 30."
  }
}

variable "pod_disruption_budget" {
  description = "PodDisruptionBudget. max_unavailable is a number or a percentage."
  type = object({
    enabled         = optional(bool, true)
    max_unavailable = optional(string)
  })
  default  = {}
  nullable = false
}

variable "autoscaling" {
  description = "Scaling with KEDA on the work for each slot, by the gateway's metrics in Prometheus. Null does not scale."
  type = object({
    prometheus       = string
    min_replicas     = optional(number)
    max_replicas     = optional(number)
    target_per_slot  = optional(number)
    cooldown_seconds = optional(number)
    query            = optional(string)
  })
  default = null

  validation {
    condition     = var.autoscaling == null || can(regex("^https?://", var.autoscaling.prometheus))
    error_message = "autoscaling.prometheus must be the URL of Prometheus."
  }
}

variable "metrics" {
  description = "Prometheus metrics of the workers, without TLS."
  type = object({
    enabled = optional(bool)
    port    = optional(number)
  })
  default  = {}
  nullable = false
}

variable "service_monitor" {
  description = "ServiceMonitor for the Prometheus operator."
  type = object({
    enabled  = optional(bool)
    labels   = optional(map(string))
    interval = optional(string)
  })
  default  = {}
  nullable = false
}

variable "network_policy" {
  description = "NetworkPolicy: egress are rules besides the gateway and DNS, metrics_from the peers that may read the metrics, as in Kubernetes' NetworkPolicy. Null is the chart's default."
  type = object({
    enabled      = optional(bool)
    egress       = optional(any)
    metrics_from = optional(any)
  })
  default  = {}
  nullable = false
}

variable "pod_labels" {
  description = "Further labels of the pods."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "pod_annotations" {
  description = "Annotations of the pods."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "node_selector" {
  description = "Labels of the nodes that pods run on."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "tolerations" {
  description = "Tolerations of the pods, as in Kubernetes."
  type        = any
  default     = null
}

variable "affinity" {
  description = "Affinity of the pods, as in Kubernetes."
  type        = any
  default     = null
}

variable "priority_class_name" {
  description = "Priority class of the pods."
  type        = string
  default     = null
}
