package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// defaultAccount is the service account that every namespace has.
const defaultAccount = "default"

// accountKey is the key under which a namespace's own service account is reconciled.
func accountKey(namespace string) key {
	return key{serving.KindServiceAccount.String(), namespace, defaultAccount}
}

// reconcileAccount makes the service account of a namespace, also when it was deleted.
func (r *Reconciler) reconcileAccount(ctx context.Context, namespace string) error {
	o, err := get[serving.Namespace](ctx, r, serving.KindNamespace, "", namespace)
	if err != nil || o == nil || o.DeletionTimestamp != nil {
		return err
	}
	_, err = r.account(ctx, namespace, defaultAccount)
	if errors.Is(err, store.ErrTerminating) || errors.Is(err, store.ErrNotFound) {
		return nil // the namespace has gone meanwhile
	}
	return err
}

// account reads a service account; "" is the namespace's own, which is made when it is not there yet.
func (r *Reconciler) account(ctx context.Context, namespace, name string) (*serving.ServiceAccount, error) {
	name = cmp.Or(name, defaultAccount)
	account, err := get[serving.ServiceAccount](ctx, r, serving.KindServiceAccount, namespace, name)
	if account != nil || err != nil {
		return account, err
	}
	if name != defaultAccount {
		return nil, fmt.Errorf("looking up service account %q in namespace %q: serviceaccount %q not found", name, namespace, name)
	}
	o, err := r.Store.Create(ctx, &serving.ServiceAccount{ObjectMeta: serving.ObjectMeta{Namespace: namespace, Name: name}})
	if errors.Is(err, store.ErrAlreadyExists) { // somebody was faster
		o, err = r.Store.Get(ctx, serving.KindServiceAccount, namespace, name)
	}
	if err != nil {
		return nil, fmt.Errorf("making service account %q in namespace %q: %w", name, namespace, err)
	}
	return o.(*serving.ServiceAccount), nil
}

// pullSecrets name the Secrets that a revision's images are pulled with: its own, else those of its service account.
func (r *Reconciler) pullSecrets(ctx context.Context, revision *serving.Revision) ([]serving.LocalObjectReference, error) {
	if own := revision.Spec.ImagePullSecrets; len(own) > 0 {
		return own, nil
	}
	name := cmp.Or(revision.Spec.ServiceAccountName, defaultAccount)
	account, err := get[serving.ServiceAccount](ctx, r, serving.KindServiceAccount, revision.Namespace, name)
	if account == nil || err != nil {
		return nil, err
	}
	return account.ImagePullSecrets, nil
}
