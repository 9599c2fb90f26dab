package serving_test

import (
	"strings"
	"testing"

	"github.com/berth-run/berth/serving"
)

// withVolume is a service that mounts one volume. What is not given is right.
func withVolume(t *testing.T, volume, mount string) *serving.Service {
	t.Helper()
	if mount == "" {
		mount = "mountPath: /v"
	}
	return service(t, "volumeMounts: [{name: v, "+mount+"}]}], volumes: [{name: v, "+volume+"}], imagePullSecrets: [{name: x")
}

func TestAdmit_TakesVolumes(t *testing.T) {
	for _, volume := range []string{
		"emptyDir: {}", "emptyDir: {medium: Memory, sizeLimit: 100M}",
		"configMap: {name: conf, defaultMode: 0444, optional: true, items: [{key: k, path: a/b/c, mode: 0400}]}",
		"secret: {secretName: keys, items: [{key: k, path: .hidden}]}",
		"projected: {defaultMode: 0444, sources: [{configMap: {name: conf}}, {secret: {name: keys}}, {serviceAccountToken: {path: token, audience: api, expirationSeconds: 600}}]}",
		"projected: {sources: [{downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}, {path: one, fieldRef: {fieldPath: 'metadata.labels[''a/b'']'}}]}}]}",
		"projected: {sources: [{downwardAPI: {items: [{path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}]}}]}",
	} {
		s := withVolume(t, volume, "")
		if _, err := admission(t).Admit(t.Context(), serving.Change{New: s}); err != nil {
			t.Errorf("%s: %v", volume, err)
		}
		if readOnly := s.Spec.Template.Spec.Containers[0].VolumeMounts[0].ReadOnly; readOnly == strings.HasPrefix(volume, "emptyDir") {
			t.Errorf("%s: the mount is read-only: %t", volume, readOnly)
		}
	}
}

func TestAdmit_RefusesVolumesThatCannotBe(t *testing.T) {
	for _, test := range []struct{ volume, mount, path string }{
		{"hostPath: {path: /etc}", "", "spec.template.spec.volumes[0].hostPath"},
		{"csi: {driver: x}", "", "spec.template.spec.volumes[0].csi"},
		{"persistentVolumeClaim: {claimName: x}", "", "spec.template.spec.volumes[0].persistentVolumeClaim"},
		{"nfs: {server: x, path: /x}", "", "spec.template.spec.volumes[0].nfs"},
		{"secret: {}", "", "spec.template.spec.volumes[0].secret.secretName"},
		{"configMap: {}", "", "spec.template.spec.volumes[0].configMap.name"},
		{"configMap: {name: c, defaultMode: 01000}", "", "spec.template.spec.volumes[0].configMap.defaultMode"},
		{"secret: {secretName: s, items: [{key: k, path: p, mode: -1}]}", "", "spec.template.spec.volumes[0].secret.items[0].mode"},
		{"secret: {secretName: s, items: [{key: k, path: ../p}]}", "", "spec.template.spec.volumes[0].secret.items[0].path"},
		{"configMap: {name: c, items: [{key: k, path: /p}]}", "", "spec.template.spec.volumes[0].configMap.items[0].path"},
		{"configMap: {name: c, items: [{key: k, path: ..data}]}", "", "spec.template.spec.volumes[0].configMap.items[0].path"},
		{"projected: {sources: [{configMap: {name: c, items: [{key: k, path: a/../../p}]}}]}", "", "spec.template.spec.volumes[0].projected.sources[0].configMap.items[0].path"},
		{"projected: {sources: [{serviceAccountToken: {path: /p}}]}", "", "spec.template.spec.volumes[0].projected.sources[0].serviceAccountToken.path"},
		{"projected: {sources: [{serviceAccountToken: {path: p, expirationSeconds: 599}}]}", "", "spec.template.spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds"},
		{"projected: {sources: [{downwardAPI: {items: [{path: p, fieldRef: {fieldPath: status.podIP}}]}}]}", "", "spec.template.spec.volumes[0].projected.sources[0].downwardAPI.items[0].fieldRef.fieldPath"},
		{"projected: {sources: [{downwardAPI: {items: [{path: p, resourceFieldRef: {containerName: c, resource: limits.gpu}}]}}]}", "", "spec.template.spec.volumes[0].projected.sources[0].downwardAPI.items[0].resourceFieldRef.resource"},
		{"emptyDir: {}", "mountPath: /proc/self", "spec.template.spec.containers[0].volumeMounts[0].mountPath"},
		{"emptyDir: {}", "mountPath: /sys", "spec.template.spec.containers[0].volumeMounts[0].mountPath"},
		{"emptyDir: {}", "mountPath: /v, subPath: a/../../b", "spec.template.spec.containers[0].volumeMounts[0].subPath"},
		{"emptyDir: {}", "mountPath: /v, subPath: " + strings.Repeat("x", 256), "spec.template.spec.containers[0].volumeMounts[0].subPath"},
		{"emptyDir: {}", "mountPath: /" + strings.Repeat("x/", 600), "spec.template.spec.containers[0].volumeMounts[0].mountPath"},
		{"configMap: {name: c, items: [{key: k, path: " + strings.Repeat("x", 256) + "}]}", "", "spec.template.spec.volumes[0].configMap.items[0].path"},
		{"emptyDir: {}}" + strings.Repeat(", {name: w, emptyDir: {}}", 128) + ", {name: x, emptyDir: {}", "", "spec.template.spec.volumes"},
		{"emptyDir: {}", "mountPath: /v}" + strings.Repeat(", {name: v, mountPath: /w}", 256) + ", {name: v, mountPath: /x", "spec.template.spec.containers[0].volumeMounts"},
		{"emptyDir: {}", "mountPath: /v, subPath: /etc", "spec.template.spec.containers[0].volumeMounts[0].subPath"},
	} {
		status := refusal(t, serving.Change{New: withVolume(t, test.volume, test.mount)})
		found := false
		for _, cause := range status.Details.Causes {
			found = found || cause.Field == test.path
		}
		if !found || status.Code != 400 || !strings.HasPrefix(status.Message, "validation failed: ") {
			t.Errorf("%s %s: got %d %q, causes %+v; want one for %s", test.volume, test.mount, status.Code, status.Message, status.Details.Causes, test.path)
		}
	}
}
