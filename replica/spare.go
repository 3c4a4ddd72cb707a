package replica

import "github.com/belaydb/belay/command"

// OthersDecide says whether the voters that are active, all but this one, are a quorum: then the
// group can do without it. A member that cannot serve its clients may stop; they are better served
// by the others.
func OthersDecide(own uint64, voters []uint64, active func(id uint64) bool) bool {
	others := 0
	for _, id := range voters {
		if id != own && active(id) {
			others++
		}
	}
	return others >= command.Quorum(len(voters))
}
