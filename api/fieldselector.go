package api

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/fields"

	"github.com/berth-run/berth/serving"
)

// selectableOf are the fields of an object that fieldSelector can name, as in Kubernetes: name and namespace of every kind,
// and a few of some.
func selectableOf(o serving.Object) fields.Set {
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	switch o := o.(type) {
	case *serving.Namespace:
		set["status.phase"] = string(o.Status.Phase)
	case *serving.Secret:
		set["type"] = string(o.Type)
	case *serving.Pod:
		set["status.phase"] = string(o.Status.Phase)
		set["status.podIP"] = o.Status.PodIP
		set["spec.nodeName"] = o.Spec.NodeName
		set["spec.restartPolicy"] = string(o.Spec.RestartPolicy)
		set["spec.serviceAccountName"] = o.Spec.ServiceAccountName
	case *serving.CoreService:
		set["spec.clusterIP"] = o.Spec.ClusterIP
		set["spec.type"] = string(o.Spec.Type)
	case *serving.Event:
		about := o.InvolvedObject
		set["involvedObject.kind"] = about.Kind
		set["involvedObject.namespace"] = about.Namespace
		set["involvedObject.name"] = about.Name
		set["involvedObject.uid"] = string(about.UID)
		set["involvedObject.apiVersion"] = about.APIVersion
		set["involvedObject.resourceVersion"] = about.ResourceVersion
		set["involvedObject.fieldPath"] = about.FieldPath
		set["reason"] = o.Reason
		set["reportingComponent"] = o.ReportingController
		set["source"] = o.Source.Component
		set["type"] = o.Type
	}
	return set
}

// constantFields never change while an object lives: who is selected by them stays so.
var constantFields = []string{"metadata.name", "metadata.namespace"}

// checkFields refuses a selector that names a field that the kind does not have.
func checkFields(kind serving.Kind, selector fields.Selector) error {
	known := selectableOf(kind.New())
	for _, requirement := range selector.Requirements() {
		if !known.Has(requirement.Field) {
			var names []string
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			return badRequest("field label not supported: %s; fieldSelector of %s takes %s", requirement.Field, kind, strings.Join(names, ", "))
		}
	}
	return nil
}
