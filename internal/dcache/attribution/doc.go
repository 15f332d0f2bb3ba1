// Package attribution tells who creates negative dentries, and counts the
// children of directories in the dentry cache, by BPF programs.
package attribution
