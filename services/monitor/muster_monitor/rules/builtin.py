"""The rules in force when nobody has written any; in the same form as a rules file."""

BUILTIN_RULES = """\
version: 1
rules:
  - name: agent_memory_high
    metric: host_memory_ratio
    above: 0.92
    recover: 0.88
    for: 1m
    summary: the machine is short of memory
  - name: agent_memory_full
    metric: host_memory_ratio
    above: 0.97
    recover: 0.94
    for: 15s
    severity: critical
    summary: the machine is out of memory, tasks are about to be killed
  - name: agent_disk_high
    metric: host_disk_ratio
    above: 0.90
    recover: 0.87
    for: 1m
    summary: the disk is nearly full
  - name: agent_disk_full
    metric: host_disk_ratio
    above: 0.97
    recover: 0.95
    for: 30s
    severity: critical
    summary: the disk is full
  - name: agent_cpu_high
    metric: host_cpu_ratio
    above: 0.97
    recover: 0.90
    for: 10m
    severity: info
    summary: the machine has had no idle processor for long
  - name: agent_waiting
    metric: agent_queued
    above: 0
    for: 5m
    summary: attempts hold a slot and do not start
  - name: agent_outbox_high
    metric: agent_outbox
    above: 500
    recover: 100
    for: 1m
    summary: outcomes wait for a leader that takes them
  - name: agent_log_lines_lost
    metric: agent_log_lines_dropped
    rate: true
    above: 10
    recover: 1
    for: 1m
    severity: info
    summary: log lines are dropped at the agent
  - name: agent_memory_unusual
    metric: agent_memory_bytes
    anomaly: {deviations: 8, recover_deviations: 4, window: 15m, min_samples: 300,
              min_difference: 1073741824, direction: above}
    for: 2m
    severity: info
    summary: the agent's processes hold far more memory than they used to
  - name: agent_processes_unusual
    metric: agent_processes
    anomaly: {deviations: 8, recover_deviations: 4, window: 15m, min_samples: 300,
              min_difference: 100, direction: above}
    for: 2m
    severity: info
    summary: the agent has far more processes than it used to
  - name: service_down
    source: service
    metric: up
    below: 1
    for: 10s
    severity: critical
    summary: the service does not answer
  - name: no_leader
    source: service
    metric: muster_scheduler_leader
    where: {service: scheduler}
    across: sum
    below: 1
    for: 15s
    severity: critical
    summary: no scheduler leads, tasks are accepted and wait
  - name: etcd_down
    source: service
    metric: muster_registry_etcd_up
    where: {service: registry}
    across: max
    below: 1
    for: 15s
    severity: critical
    summary: the registry does not reach etcd
  - name: queue_unusual
    source: service
    metric: muster_tasks_queued
    where: {service: scheduler}
    across: sum
    anomaly: {deviations: 8, recover_deviations: 4, window: 1h, min_samples: 60,
              min_difference: 1000, direction: above}
    for: 5m
    severity: info
    summary: far more tasks wait than usual
  - name: tasks_dead
    source: service
    metric: muster_tasks_ended_total
    where: {service: scheduler, state: DEAD}
    across: sum
    rate: true
    above: 0
    summary: tasks were given up because agents died with them
logs:
  patterns:
    - name: log_out_of_memory
      pattern: '(?i)out of memory|oom.?kill|cannot allocate memory|\\bMemoryError\\b'
      summary: a log speaks of missing memory
    - name: log_disk_full
      pattern: '(?i)no space left on device|disk quota exceeded'
      summary: a log speaks of a full disk
    - name: log_crash
      pattern: '(?i)segmentation fault|core dumped|\\bfatal python error\\b'
      summary: a process crashed
"""
