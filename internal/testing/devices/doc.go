// Package devices tests what is reported of block devices that fail or hang, with real ones
// of the device mapper, NBD and iSCSI, on a machine of their own.
package devices
