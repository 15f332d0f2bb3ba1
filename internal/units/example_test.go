package units_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/units"
)

func ExampleDropInFolders() {
	for _, folder := range units.DropInFolders("srv-data-photos.mount") {
		fmt.Println(folder)
	}
	// Output:
	// srv-data-photos.mount.d
	// srv-data-.mount.d
	// srv-.mount.d
	// mount.d
}

func ExampleState_Startable() {
	for _, state := range []units.State{units.Enabled, units.Disabled, units.Masked, units.Absent} {
		fmt.Println(state, state.Startable())
	}
	// Output:
	// enabled true
	// disabled true
	// masked false
	// absent false
}
