package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/serving"
)

// column is one column that kubectl get prints after the name.
type column struct {
	name, kind string
	cell       func(serving.Object) any
}

// columns are a kind's columns: Knative's for its kinds, Kubernetes' for core kinds.
func columns(kind serving.Kind) []column {
	age := column{"Age", "string", ageOf}
	ready := []column{
		{"Ready", "string", func(o serving.Object) any { return string(readyOf(o).Status) }},
		{"Reason", "string", func(o serving.Object) any { return readyOf(o).Reason }},
	}
	created := column{"LatestCreated", "string", func(o serving.Object) any { name, _ := revisionsOf(o); return name }}
	latest := column{"LatestReady", "string", func(o serving.Object) any { _, name := revisionsOf(o); return name }}
	url := column{"URL", "string", urlOf}
	switch kind.String() {
	case serving.KindService.String():
		return append([]column{url, created, latest}, ready...)
	case serving.KindConfiguration.String():
		return append([]column{created, latest}, ready...)
	case serving.KindRoute.String(), serving.KindDomainMapping.String():
		return append([]column{url}, ready...)
	case serving.KindRevision.String():
		label := func(key string) func(serving.Object) any {
			return func(o serving.Object) any { return o.GetLabels()[key] }
		}
		of := []column{
			{"Config Name", "string", label(serving.LabelConfiguration)},
			{"Generation", "string", label(serving.LabelConfigurationGeneration)},
		}
		return append(append(of, ready...),
			column{"Actual Replicas", "integer", func(o serving.Object) any { return count(o.(*serving.Revision).Status.ActualReplicas) }},
			column{"Desired Replicas", "integer", func(o serving.Object) any { return count(o.(*serving.Revision).Status.DesiredReplicas) }})
	case serving.KindNamespace.String():
		return []column{{"Status", "string", func(o serving.Object) any { return string(o.(*serving.Namespace).Status.Phase) }}, age}
	case serving.KindSecret.String():
		return []column{
			{"Type", "string", func(o serving.Object) any { return string(o.(*serving.Secret).Type) }},
			{"Data", "string", func(o serving.Object) any { return strconv.Itoa(len(o.(*serving.Secret).Data)) }}, age,
		}
	case serving.KindConfigMap.String():
		return []column{{"Data", "string", func(o serving.Object) any {
			c := o.(*serving.ConfigMap)
			return strconv.Itoa(len(c.Data) + len(c.BinaryData))
		}}, age}
	case serving.KindServiceAccount.String():
		return []column{{"Secrets", "string", func(o serving.Object) any { return strconv.Itoa(len(o.(*serving.ServiceAccount).Secrets)) }}, age}
	case serving.KindPod.String():
		return append(podColumns(), age)
	case serving.KindEvent.String():
		return eventColumns()
	case serving.KindCoreService.String():
		return append(coreServiceColumns(), age)
	}
	return []column{age}
}

// wideColumns are those that kubectl get prints with -o wide, after the others.
func wideColumns(kind serving.Kind) []column {
	switch kind.String() {
	case serving.KindPod.String():
		return podWideColumns()
	case serving.KindEvent.String():
		return eventWideColumns()
	case serving.KindCoreService.String():
		return coreServiceWideColumns()
	}
	return nil
}

// tableOf is objects as rows.
func tableOf(r *http.Request, kind serving.Kind, objects []serving.Object, meta v1.ListMeta) *v1.Table {
	cols, wide := columns(kind), wideColumns(kind)
	t := &v1.Table{
		TypeMeta: v1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ListMeta: meta,
		ColumnDefinitions: []v1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: "The object's name, unique in its namespace."}},
		Rows:              make([]v1.TableRow, 0, len(objects)),
	}
	for _, c := range cols {
		t.ColumnDefinitions = append(t.ColumnDefinitions, v1.TableColumnDefinition{Name: c.name, Type: c.kind})
	}
	for _, c := range wide {
		t.ColumnDefinitions = append(t.ColumnDefinitions, v1.TableColumnDefinition{Name: c.name, Type: c.kind, Priority: 1})
	}
	if kind.String() == serving.KindEvent.String() {
		t.ColumnDefinitions[0].Priority = 1 // an event's name says nothing
	}
	include := v1.IncludeObjectPolicy(r.URL.Query().Get("includeObject"))
	for _, o := range objects {
		row := v1.TableRow{Cells: []any{o.GetName()}}
		for _, c := range cols {
			row.Cells = append(row.Cells, c.cell(o))
		}
		for _, c := range wide {
			row.Cells = append(row.Cells, c.cell(o))
		}
		switch include {
		case v1.IncludeNone:
		case v1.IncludeObject:
			row.Object = runtime.RawExtension{Raw: raw(stamped(kind, o))}
		default:
			row.Object = runtime.RawExtension{Raw: raw(metadataOf(o))}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// raw is an object's JSON. The types are ours: there is none that cannot be encoded.
func raw(o any) []byte {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return data
}

// revisionsOf is the names of the revisions latest created and latest ready.
func revisionsOf(o serving.Object) (created, ready string) {
	switch o := o.(type) {
	case *serving.Service:
		return o.Status.LatestCreatedRevisionName, o.Status.LatestReadyRevisionName
	case *serving.Configuration:
		return o.Status.LatestCreatedRevisionName, o.Status.LatestReadyRevisionName
	}
	return "", ""
}

func urlOf(o serving.Object) any {
	var url *apis.URL
	switch o := o.(type) {
	case *serving.Service:
		url = o.Status.URL
	case *serving.Route:
		url = o.Status.URL
	case *serving.DomainMapping:
		url = o.Status.URL
	}
	if url == nil {
		return ""
	}
	return url.String()
}

// readyOf is the condition that sums an object up, empty before there is one.
func readyOf(o serving.Object) (ready apis.Condition) {
	var status interface {
		GetCondition(apis.ConditionType) *apis.Condition
	}
	switch o := o.(type) {
	case *serving.Service:
		status = &o.Status
	case *serving.Configuration:
		status = &o.Status
	case *serving.Route:
		status = &o.Status
	case *serving.Revision:
		status = &o.Status
	case *serving.DomainMapping:
		status = &o.Status
	default:
		return ready
	}
	if c := status.GetCondition(apis.ConditionReady); c != nil {
		ready = *c
	}
	if loop := status.GetCondition(serving.ConditionInstancesHealthy); ready.IsTrue() && loop.IsFalse() {
		ready.Reason = loop.Reason
	}
	return ready
}

func ageOf(o serving.Object) any { return since(o.GetCreationTimestamp()) }

// since is how long ago a time was, as kubectl prints it.
func since(t serving.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(t.Time))
}

func count(n *int32) any {
	if n == nil {
		return nil
	}
	return *n
}
