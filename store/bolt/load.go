package bolt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"sync"

	"go.etcd.io/bbolt"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
)

// head is what must be known of an object when the store is opened. The rest is decoded when somebody reads it: with
// tens of thousands of objects that would be most of the time that a server takes to start.
type head struct {
	Metadata struct {
		Namespace         string
		Name              string
		UID               types.UID
		OwnerReferences   []serving.OwnerReference
		DeletionTimestamp *serving.Time
	}
}

// object is an object with nothing but what a head has.
func (h *head) object() serving.Object {
	return &serving.Namespace{ObjectMeta: serving.ObjectMeta{
		Namespace: h.Metadata.Namespace, Name: h.Metadata.Name, UID: h.Metadata.UID, OwnerReferences: h.Metadata.OwnerReferences,
	}}
}

// loaded is an object that was read from the file.
type loaded struct {
	kind int
	name []byte // its name in the file
	data []byte
	head head
	err  error
}

// load reads all objects.
func (s *Store) load(tx *bbolt.Tx) error {
	meta := tx.Bucket([]byte(metaBucket))
	if meta == nil {
		return fmt.Errorf("it is damaged or not a store; %s", remedy)
	}
	var err error
	if s.reserved, err = number(meta, versionKey); err != nil {
		return err
	}
	s.version = s.reserved
	for kind := range serving.Kinds {
		bucket := tx.Bucket([]byte(bucketName(kind)))
		if bucket == nil {
			continue
		}
		var objects []loaded
		err := bucket.ForEach(func(name, data []byte) error {
			objects = append(objects, loaded{kind: kind, name: name, data: bytes.Clone(data)})
			return nil
		})
		if err != nil {
			return err
		}
		readHeads(objects)
		s.tables[kind].reserve(len(objects))
		for i := range objects {
			if err := s.enter(&objects[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// readHeads decodes the heads of objects, on all processors.
func readHeads(objects []loaded) {
	workers := runtime.GOMAXPROCS(0)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := w; i < len(objects); i += workers {
				objects[i].err = json.Unmarshal(objects[i].data, &objects[i].head)
			}
		})
	}
	group.Wait()
}

// enter puts an object into memory.
func (s *Store) enter(l *loaded) error {
	if l.err != nil {
		return fmt.Errorf("it is damaged (reading %s %q: %w); %s", bucketName(l.kind), l.name, l.err, remedy)
	}
	m := &l.head.Metadata
	k := key{l.kind, m.Namespace, m.Name}
	if !bytes.Equal(l.name, k.bytes()) {
		return fmt.Errorf("it is damaged (%s %q is stored as %q); %s", bucketName(l.kind), k.bytes(), l.name, remedy)
	}
	s.tables[l.kind].load(k.namespace, k.name, l.data)
	s.graph.replace(k, nil, l.head.object())
	s.found = append(s.found, found{key: k, owners: m.OwnerReferences, deleting: m.DeletionTimestamp != nil})
	return nil
}
