package mounts

// ReadText has a watcher read tables as text, as on kernels before Linux 6.13.
func (w *Watcher) ReadText() { w.statmount, w.plainText = false, true }
