// Package dashboards makes the Grafana dashboards from one description: each
// panel's query is written once, in terms of measurements, fields and tags, and
// put into InfluxQL, Flux and PromQL. So the sets show the same, and what they
// ask for can be compared with what the inputs report.
//
// In Prometheus the fields are named as Telegraf's prometheus_client output
// names them with metric_version = 2: MEASUREMENT_FIELD. Prometheus has no
// strings. Where a panel shows some, they are labels of one more metric per
// series, named MEASUREMENT_info_FIELD. The configuration that Processors returns
// makes these, and passes on only what the queries and the alert rules name.
//
// Grafana's own builders (grafana-foundation-sdk) would say the same in ten times
// the code, so grafana.go has the few parts of the JSON model that are used.
package dashboards
