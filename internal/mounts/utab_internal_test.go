package mounts

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseUtab(t *testing.T) {
	assert.Equal(t, map[string]utabEntry{
		"/mnt/a b": {source: "nas:/a b", target: "/mnt/a b"},
		"/mnt/c":   {source: "nas:/c", target: "/mnt/c", id: 61},
	}, parseUtab([]byte("SRC=nas:/a\\040b TARGET=/mnt/a\\040b ROOT=/ ATTRS=vers=4.2,addr=10.1.1.1,clientaddr=10.1.1.2\n"+
		"ID=61 SRC=nas:/c TARGET=/mnt/c ROOT=/\n\nnonsense\nSRC=nas:/d ROOT=/\n")))
	assert.Empty(t, parseUtab(nil))
}

func FuzzParseUtab(f *testing.F) {
	f.Add("ID=61 SRC=nas:/c TARGET=/mnt/c\\040 ROOT=/")
	f.Add("ID=x TARGET== =")
	f.Fuzz(func(t *testing.T, text string) {
		for target, e := range parseUtab([]byte(text)) {
			assert.Equal(t, target, e.target)
		}
	})
}

// What was mounted by hand is noted by libmount, and what the kernel has mounted is not.
func TestSnapshot_TellsMountsByHandFromTheKernels(t *testing.T) {
	const options = "rw,vers=4.2,hard,proto=tcp,sec=sys,clientaddr=10.1.1.9,addr=10.1.1."
	table := strings.ReplaceAll(`20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 0:40 / /nas rw,relatime - nfs4 nas:/ OPTIONS1
31 30 0:41 / /nas/home rw,relatime - nfs4 nas:/home OPTIONS1
32 31 0:42 / /nas/home/ann rw,relatime - nfs4 nas:/home/ann OPTIONS1
33 30 0:43 / /nas/other rw,relatime - nfs4 other:/vol OPTIONS2
34 33 0:44 / /nas/other/below rw,relatime - nfs4 other:/vol/below OPTIONS2
35 30 0:45 / /nas/third rw,noexec - nfs4 other:/third OPTIONS2
`, "OPTIONS", options)
	s := Parse([]byte(table))
	require.NoError(t, s.Err)
	require.True(t, s.hasLikeSubmounts())
	submounts := func(utab string) (found []string) {
		for _, m := range s.told(&notes{utab: parseUtab([]byte(utab))}).Mounts {
			assert.Equal(t, m.Submount, m.OnDemand, m.Mountpoint)
			if m.Submount {
				found = append(found, m.Mountpoint)
			}
		}
		return found
	}
	const root = "SRC=nas:/ TARGET=/nas ROOT=/\n"
	alike := []string{"/nas/home", "/nas/home/ann", "/nas/other/below"}
	assert.Equal(t, alike, submounts(""), "another server's could be by hand")
	assert.Same(t, s, s.told(&notes{}), "nothing is known")
	assert.Equal(t, []string{"/nas/home", "/nas/home/ann", "/nas/other", "/nas/other/below"}, submounts(root), "then the referral is the kernel's, too")
	assert.Equal(t, []string{"/nas/home/ann", "/nas/other/below"}, submounts(root+"SRC=nas:/home TARGET=/nas/home ROOT=/\nSRC=other:/vol/ TARGET=/nas/other ROOT=/\n"))
	assert.Equal(t, alike[1:], submounts("ID=31 SRC=nas:/home TARGET=/nas/home\n"))
	assert.Equal(t, alike, submounts("ID=29 SRC=nas:/home TARGET=/nas/home\n"), "one that was there before")
	assert.Equal(t, alike, submounts("SRC=nas:/else TARGET=/nas/home\n"), "another one")
}

// As Linux 6.1 has it, with Samba 4.17 as the server.
const dfsCacheContent = `DFS cache
---------
cache entry: path=\10.9.0.1\dfs,type=root,ttl=600,etime=768116825,hdr_flags=0x3,ref_flags=0x0,interlink=no,path_consumed=13,expired=no
  \10.9.0.1\dfs (target hint)
cache entry: path=\10.9.0.1\dfs\Link,type=link,ttl=600,etime=838181721,hdr_flags=0x2,ref_flags=0x0,interlink=no,path_consumed=18,expired=no
  \10.9.0.1\more (target hint)
cache entry: path=\10.9.0.1\dfs\a,type=link,b,type=link,ttl=600,etime=1,hdr_flags=0x2,ref_flags=0x0,interlink=no,path_consumed=18,expired=yes
`

func TestParseDFSLinks(t *testing.T) {
	assert.Equal(t, map[string]bool{"//10.9.0.1/dfs/link": true, "//10.9.0.1/dfs/a,type=link,b": true}, parseDFSLinks([]byte(dfsCacheContent)))
	assert.Equal(t, map[string]bool{}, parseDFSLinks([]byte("DFS cache\n---------\n")), "none is known")
	assert.Nil(t, parseDFSLinks(nil), "there is no such file")
}

func FuzzParseDFSLinks(f *testing.F) {
	f.Add(dfsCacheContent)
	f.Fuzz(func(t *testing.T, text string) {
		for link := range parseDFSLinks([]byte(text)) {
			assert.Equal(t, link, dfsPath(link))
		}
	})
}

// What the SMB client has mounted is a link of DFS, and it lists these. The mounts are as Linux
// 6.1 has them.
func TestSnapshot_TellsLinksOfDFSFromMountsByHand(t *testing.T) {
	const options = "rw,vers=3.1.1,cache=strict,username=root,uid=0,noforceuid,gid=0,noforcegid,addr=10.9.0.1,soft,nounix,mapposix"
	s := Parse([]byte(strings.ReplaceAll(`20 1 8:1 / / rw - ext4 /dev/sda1 rw
45 20 0:24 / /mnt/dfs rw,relatime - cifs //10.9.0.1/dfs OPTIONS
46 45 0:25 / /mnt/dfs/Link rw,relatime - cifs //10.9.0.1/dfs/Link OPTIONS
48 45 0:27 / /mnt/dfs/plain rw,relatime - cifs //10.9.0.1/dfs/plain OPTIONS
`, "OPTIONS", options)))
	require.NoError(t, s.Err)
	submounts := func(n *notes) (found []string) {
		for _, m := range s.told(n).Mounts {
			if m.Submount {
				found = append(found, m.Mountpoint)
			}
		}
		return found
	}
	links := parseDFSLinks([]byte(dfsCacheContent))
	assert.Equal(t, []string{"/mnt/dfs/Link", "/mnt/dfs/plain"}, submounts(&notes{}), "nothing is known")
	assert.Equal(t, []string{"/mnt/dfs/Link"}, submounts(&notes{links: links}))
	assert.Equal(t, []string{"/mnt/dfs/Link"}, submounts(&notes{utab: parseUtab([]byte("SRC=//10.9.0.1/dfs/plain TARGET=/mnt/dfs/plain ROOT=/ OPTS=user=root\n"))}))
	assert.Empty(t, submounts(&notes{links: map[string]bool{}}))
}
