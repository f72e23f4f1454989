# Host

variable "ssh" {
  description = "Host with systemd that is reached by SSH: as root, or as a user who may use sudo without a password. host_key is the host's public key, because Terraform accepts any host without one: of the kinds that the host has, the first of ecdsa-sha2-nistp256, ssh-rsa and ssh-ed25519, which is the one that Terraform negotiates. timeout is that of connecting. private_key_file is the path of an unencrypted key; null is the SSH agent. Null for cloud_init alone."
  type = object({
    host             = string
    port             = optional(number, 22)
    timeout          = optional(string, "2m")
    user             = optional(string, "root")
    sudo             = optional(bool, true)
    host_key         = string
    private_key_file = optional(string)
    bastion_host     = optional(string)
    bastion_host_key = optional(string)
    bastion_user     = optional(string)
  })
  default = null

  validation {
    condition     = var.ssh == null || can(regex("^(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+", var.ssh.host_key))
    error_message = "ssh.host_key must be the host's public key, such as the text of its /etc/ssh/ssh_host_ecdsa_key.pub."
  }

  validation {
    condition     = var.ssh == null || try(var.ssh.bastion_host == null || var.ssh.bastion_host_key != null, false)
    error_message = "ssh.bastion_host needs ssh.bastion_host_key."
  }

  validation {
    condition     = try(var.ssh.private_key_file, null) == null || can(file(pathexpand(var.ssh.private_key_file)))
    error_message = "ssh.private_key_file cannot be read."
  }
}

variable "purge_on_destroy" {
  description = "Whether destruction removes settings and state, too: the worker's identity and results that were not reported."
  type        = bool
  default     = false
  nullable    = false
}

# Package

variable "package" {
  description = "Package of a release (`airbridge-ci host-package`) and its SHA-256. Either file, which is copied to the host, or url (https), from which the host downloads it. Another SHA-256 upgrades the worker, which drains first."
  type = object({
    file   = optional(string)
    url    = optional(string)
    sha256 = string
  })
  nullable = false

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.package.sha256))
    error_message = "package.sha256 must be 64 hexadecimal digits, as sha256sum prints them."
  }

  validation {
    condition     = (var.package.file == null) != (var.package.url == null)
    error_message = "Exactly one of package.file and package.url is needed."
  }

  validation {
    condition     = var.package.url == null || can(regex("^https://[^ '\"\\\\]+$", var.package.url))
    error_message = "package.url must be an https:// URL without spaces and quotes."
  }
}

# Worker

variable "gateway_url" {
  description = "URL of the gateway's port for workers."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^https://[^/\\s]+/?$", var.gateway_url))
    error_message = "gateway_url must be https:// and a host, with its port if it is not 443, and no path."
  }
}

variable "ca_certificate" {
  description = "PEM of the roots that the gateway's certificate chains to."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("-----BEGIN CERTIFICATE-----", var.ca_certificate))
    error_message = "ca_certificate must be PEM: its text, not the path of a file."
  }
}

variable "region" {
  description = "Region of the worker, as in the region catalogue."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.region))
    error_message = "region must be lower-case letters, digits and hyphens, as in the region catalogue."
  }
}

variable "pool" {
  description = "Pool of the worker. Null is the worker's default."
  type        = string
  default     = null

  validation {
    condition     = var.pool == null || can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.pool))
    error_message = "pool must be lower-case letters, digits and hyphens, as in the region catalogue."
  }
}

variable "name" {
  description = "Name of the worker. Null is the host's name."
  type        = string
  default     = null

  validation {
    condition     = var.name == null || can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", var.name))
    error_message = "name must be letters, digits, dots, hyphens and underscores."
  }
}

variable "slots" {
  description = "Tasks of the worker at one time. Null is the worker's default."
  type        = number
  default     = null

  validation {
    condition     = var.slots == null || try(var.slots >= 1 && floor(var.slots) == var.slots, false)
    error_message = "slots must be a whole number of at least 1."
  }
}

variable "settings" {
  description = "Further settings of the worker by name (docs/reference/worker-settings.md): texts, numbers and booleans, or lists of them."
  type        = any
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^[a-z][a-z0-9_]*$", name))])
    error_message = "settings must be an object whose names are settings of the worker."
  }

  validation {
    condition     = alltrue([for value in values(var.settings) : can(tostring(value)) && value != null || can([for each in value : tostring(each)]) && !can(keys(value))])
    error_message = "Values of settings must be texts, numbers, booleans, or lists of them."
  }

  validation {
    condition     = length(setintersection(keys(var.settings), ["gateway_url", "region", "pool", "name", "slots", "ca_file", "join_method", "join_token_file", "state_dir"])) == 0
    error_message = "settings must not hold what has a variable of its own, or is fixed by the installation: gateway_url, region, pool, name, slots, ca_file, join_method, join_token_file, state_dir."
  }
}

variable "join_method" {
  description = "How the worker joins: token (by join_token), bound_key (by the host's own key, which join_token or an operator binds to name) or aws_iam (by the IAM role of an EC2 instance)."
  type        = string
  default     = "token"
  nullable    = false

  validation {
    condition     = contains(["token", "bound_key", "aws_iam"], var.join_method)
    error_message = "join_method must be token, bound_key or aws_iam."
  }

  validation {
    condition     = var.join_method != "bound_key" || var.name != null
    error_message = "join_method bound_key needs name: the key is bound to it."
  }
}

variable "join_token" {
  description = "Join token. It is ephemeral: neither plan nor state holds it, and another token alone changes nothing. Needed when the worker is installed; later installations use the one on the host again."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.join_token == null || var.join_method != "aws_iam"
    error_message = "join_method aws_iam takes no join_token."
  }
}

variable "join_token_version" {
  description = "Raise it to install the worker anew with another join_token."
  type        = number
  default     = 1
  nullable    = false
}
