package containers

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var id = strings.Repeat("0123456789abcdef", 4)

const uid = "1f2e3d4c-0000-4111-8222-333344445555"

func TestParseLog(t *testing.T) {
	got, o, ok := ParseLog("web-0_shop_nginx-proxy-" + id + ".log")
	assert.True(t, ok)
	assert.Equal(t, id, got)
	assert.Equal(t, Owner{"shop", "web-0", "nginx-proxy"}, o)
	for _, name := range []string{"", "web_shop_nginx.log", "web_shop_" + id + ".log", "web_shop_-" + id + ".log", "web_shop_c-" + id, "_shop_c-" + id + ".log", "a_b_c_d-" + id + ".log"} {
		_, o, ok := ParseLog(name)
		assert.False(t, ok, name)
		assert.False(t, o.Known(), name)
	}
}

func TestParseLog_OfPods(t *testing.T) {
	got, o, ok := ParsePodLogs("shop_web-0_" + uid)
	assert.True(t, ok)
	assert.Equal(t, uid, got)
	assert.Equal(t, Owner{Namespace: "shop", Pod: "web-0"}, o)
	for _, name := range []string{"", "shop_web", "shop__" + uid, "a_b_c_d"} {
		_, _, ok := ParsePodLogs(name)
		assert.False(t, ok, name)
	}
}

func TestFiles_OfRuntimes(t *testing.T) {
	o, err := ParseDocker([]byte(`{"ID":"` + id + `","Name":"/web","Config":{"Labels":{}}}`))
	require.NoError(t, err)
	assert.Equal(t, Owner{Container: "web"}, o)
	o, err = ParseDocker([]byte(`{"Name":"/k8s_nginx_web-0_shop_` + uid + `_0"}`))
	require.NoError(t, err)
	assert.Equal(t, Owner{"shop", "web-0", "nginx"}, o)

	all, err := ParseStorage([]byte(`[{"id":"` + id + `","names":["web"],"image":"x"},{"id":"2"},{"id":"3","names":["k8s_POD_web-0_shop_` + uid + `_1"]}]`))
	require.NoError(t, err)
	assert.Equal(t, map[string]Owner{id: {Container: "web"}, "3": {"shop", "web-0", "POD"}}, all)

	o, err = ParseBundle([]byte(`{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.container-name":"nginx","io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop"}}`))
	require.NoError(t, err)
	assert.Equal(t, Owner{"shop", "web-0", "nginx"}, o)
	o, err = ParseBundle([]byte(`{"annotations":{"nerdctl/name":"web"}}`))
	require.NoError(t, err)
	assert.Equal(t, Owner{Container: "web"}, o)
}

func TestVolumeAt(t *testing.T) {
	for path, want := range map[string]Volume{
		"/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/pvc-1/mount":                 {PodUID: uid, Name: "pvc-1"},
		"/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~nfs/data":                        {PodUID: uid, Name: "data"},
		"/var/snap/microk8s/common/var/lib/kubelet/pods/" + uid + "/volume-subpaths/data/nginx/0": {PodUID: uid, Name: "data", Container: "nginx"},
		"/var/lib/kubelet/plugins/kubernetes.io/csi/pv/pvc-1/globalmount":                         {Name: "pvc-1"},
		"/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~nfs":                             {},
		"/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~nfs/data/below":                  {},
		"/var/lib/kubelet/plugins/kubernetes.io/csi/pv/pvc-1":                                     {},
		"/srv/pods/a/volumes/plain/b":                                                             {},
		"/":                                                                                       {},
	} {
		got, found := VolumeAt(path)
		assert.Equal(t, want.Name != "", found, path)
		if found {
			assert.Equal(t, want, got, path)
		}
	}
}

func TestVolume_Claim(t *testing.T) {
	v := Volume{Name: "pvc-1"}
	assert.Equal(t, "data-web-0", v.Claim("filer:/export/shop-data-web-0-pvc-1", Owner{Namespace: "shop"}))
	assert.Empty(t, v.Claim("filer:/export/shop-data-pvc-2", Owner{Namespace: "shop"}))
	assert.Empty(t, v.Claim("filer:/export/-data-pvc-1", Owner{}))
	assert.Empty(t, v.Claim("", Owner{Namespace: "shop"}))
}

func TestNames_AreBoundedAndPrintable(t *testing.T) {
	long := strings.Repeat("a\n", 1000)
	fields := make(map[string]any)
	Volume{Name: long, Container: long}.AddTo(fields, "", Owner{Namespace: long, Pod: long})
	assert.Len(t, fields, 4)
	for name, value := range fields {
		assert.LessOrEqual(t, len(value.(string)), 4*maxName, name)
		assert.NotContains(t, value, "\n", name)
	}
	fields = make(map[string]any)
	Owner{Container: "web"}.AddTo(fields, "blocked_")
	assert.Equal(t, map[string]any{"blocked_container_name": "web"}, fields)
}

func FuzzNames(f *testing.F) {
	f.Add("web-0_shop_nginx-" + id + ".log")
	f.Add("shop_web-0_" + uid)
	f.Fuzz(func(t *testing.T, name string) {
		if id, o, ok := ParseLog(name); ok {
			require.Equal(t, name, o.Pod+"_"+o.Namespace+"_"+o.Container+"-"+id+".log")
		}
		if uid, o, ok := ParsePodLogs(name); ok {
			require.Equal(t, name, o.Namespace+"_"+o.Pod+"_"+uid)
		}
	})
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte(`{"Name":"/k8s_a_b_c_d_0","annotations":{"nerdctl/name":"web"}}`))
	f.Add([]byte(`[{"id":"1","names":["web"]}]`))
	f.Fuzz(func(t *testing.T, content []byte) {
		docker, _ := ParseDocker(content)
		bundle, _ := ParseBundle(content)
		all, _ := ParseStorage(content)
		for _, o := range append([]Owner{docker, bundle}, all[""]) {
			bounded := o.Bounded()
			require.True(t, strings.HasPrefix(o.Pod, bounded.Pod))
			require.LessOrEqual(t, len(bounded.Container), maxName)
		}
	})
}

func FuzzVolumeAt(f *testing.F) {
	f.Add("/var/lib/kubelet/pods/"+uid+"/volumes/kubernetes.io~csi/pvc-1/mount", "filer:/shop-data-pvc-1", "shop")
	f.Add("/var/lib/kubelet/pods/"+uid+"/volume-subpaths/data/nginx/0", "", "")
	f.Fuzz(func(t *testing.T, path, source, namespace string) {
		v, found := VolumeAt(path)
		if !found {
			return
		}
		require.NotContains(t, v.Name, "/")
		require.Contains(t, path, "/"+v.Name)
		require.Contains(t, source, v.Claim(source, Owner{Namespace: namespace}))
	})
}
