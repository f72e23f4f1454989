locals {
  chart = coalesce(var.chart, "${path.module}/../../helm/airbridge-worker")

  # As in the chart's _helpers.tpl.
  full_name = trimsuffix(substr(strcontains(var.release_name, "airbridge-worker") ? var.release_name : "${var.release_name}-airbridge-worker", 0, 50), "-")

  # A pod's replacement waits for its drain, one pod after the other.
  timeout = coalesce(var.timeout_seconds, (var.drain_seconds + 300) * max(var.replicas, 1))

  # By the chart's names. What is null is left out below, so that the chart's own default holds.
  given = {
    image = {
      repository = var.image.repository
      digest     = var.image.digest
      pullPolicy = var.image.pull_policy
    }
    gateway = {
      url         = var.gateway_url
      ca          = var.ca_certificate
      caConfigMap = var.ca_config_map
    }
    region     = var.region
    pool       = var.pool
    namePrefix = var.name_prefix
    join = {
      method            = var.join.method
      audience          = var.join.audience
      expirationSeconds = var.join.expiration_seconds
    }
    joinSecret     = var.join.secret
    serviceAccount = var.service_account
    replicas       = var.replicas
    slots          = var.slots
    slot = {
      memoryMiB = var.slot.memory_mib
      cpus      = var.slot.cpus
      processes = var.slot.processes
      diskMiB   = var.slot.disk_mib
    }
    resources = var.resources
    persistence = {
      size         = var.persistence.size
      storageClass = var.persistence.storage_class
    }
    drainSeconds = var.drain_seconds
    podDisruptionBudget = {
      enabled = var.pod_disruption_budget.enabled
      # Kubernetes refuses a number that is a string.
      maxUnavailable = try(tonumber(var.pod_disruption_budget.max_unavailable), var.pod_disruption_budget.max_unavailable)
    }
    autoscaling = {
      enabled         = var.autoscaling != null
      minReplicas     = try(var.autoscaling.min_replicas, null)
      maxReplicas     = try(var.autoscaling.max_replicas, null)
      prometheus      = try(var.autoscaling.prometheus, null)
      targetPerSlot   = try(var.autoscaling.target_per_slot, null)
      cooldownSeconds = try(var.autoscaling.cooldown_seconds, null)
      query           = try(var.autoscaling.query, null)
    }
    metrics        = var.metrics
    serviceMonitor = var.service_monitor
    networkPolicy = {
      enabled = var.network_policy.enabled
    }
    podLabels         = var.pod_labels
    podAnnotations    = var.pod_annotations
    nodeSelector      = var.node_selector
    priorityClassName = var.priority_class_name
  }

  # Their elements have no common type, so each is a document of its own.
  untyped = {
    imagePullSecrets = [for name in var.image_pull_secrets : { name = name }]
    settings         = var.settings
    extraEnv         = var.extra_env
    extraEnvFrom     = var.extra_env_from
    tolerations      = var.tolerations
    affinity         = var.affinity
    networkPolicy    = { for name, value in { egress = var.network_policy.egress, metricsFrom = var.network_policy.metrics_from } : name => value if value != null }
  }

  values = concat(
    [yamlencode({
      for name, value in local.given : name => try({ for key, inner in value : key => inner if inner != null }, value)
      if value != null
    })],
    [for name, value in local.untyped : yamlencode({ (name) = value }) if value != null],
    var.extra_values,
  )
}

resource "helm_release" "this" {
  name             = var.release_name
  namespace        = var.namespace
  create_namespace = var.create_namespace

  chart      = local.chart
  repository = var.chart_repository
  version    = var.chart_version

  values  = local.values
  wait    = var.wait
  timeout = local.timeout
  # A rollback would drain what has just been replaced; a failed upgrade stays to be looked at.
  atomic = false
  # Workers keep their volumes, and with them results that are not reported yet.
  cleanup_on_fail = false
}
