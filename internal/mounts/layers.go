package mounts

import "strings"

// Layers returns the absolute paths of the directories that the file system shows in another
// form, as the mount table has them: those of an overlay (ovl_show_options,
// fs/overlayfs/params.c), or the source of ecryptfs, bindfs and the like. A relative path
// is left out, since it is not known what it was relative to. An SMB server's //HOST/SHARE is no
// such path.
func (m *Mount) Layers() []string {
	if m.FSType != "overlay" {
		if strings.HasPrefix(m.Source, "/") && !strings.HasPrefix(m.Source, "/dev/") && !m.SMB() {
			return []string{m.Source}
		}
		return nil
	}
	var all []string
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		switch key, value, _ := strings.Cut(option, "="); key {
		case "lowerdir":
			all = appendAbsolute(all, splitEscaped(UnescapeOctal(value))...)
		case "lowerdir+", "datadir+", "upperdir": // the first two since Linux 6.7
			all = appendAbsolute(all, UnescapeOctal(value))
		}
	}
	return all
}

func appendAbsolute(all []string, paths ...string) []string {
	for _, path := range paths {
		if strings.HasPrefix(path, "/") {
			all = append(all, path)
		}
	}
	return all
}

// splitEscaped splits a list at colons that follow no backslash
// (Documentation/filesystems/overlayfs.rst).
func splitEscaped(list string) []string {
	all := []string{""}
	for i := 0; i < len(list); i++ {
		last := &all[len(all)-1]
		switch {
		case list[i] == '\\' && i+1 < len(list):
			i++
			*last += list[i : i+1]
		case list[i] == ':':
			all = append(all, "")
		default:
			*last += list[i : i+1]
		}
	}
	return all
}
