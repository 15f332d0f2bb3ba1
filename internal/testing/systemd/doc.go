// Package systemd tests the packages on a machine that systemd runs, with Telegraf's own
// unit.
package systemd
