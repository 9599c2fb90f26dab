package serving

import (
	"context"
)

// ContainerNames returns the names that the containers and init containers of an object's revision template have
// once defaults are filled in, in their order: those without a name get one. Other kinds have none.
func ContainerNames(o Object) (containers, inits []string) {
	var template *RevisionTemplateSpec
	switch o := o.(type) {
	case *Service:
		template = &o.Spec.Template
	case *Configuration:
		template = &o.Spec.Template
	default:
		return nil, nil
	}
	spec := template.Spec.DeepCopy()
	spec.SetDefaults(context.Background())
	for _, c := range spec.Containers {
		containers = append(containers, c.Name)
	}
	for _, c := range spec.InitContainers {
		inits = append(inits, c.Name)
	}
	return containers, inits
}
