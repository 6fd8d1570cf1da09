package history

// kind is a place in kinds.
type kind int

// what is a kind of operation. A new one is a line here and a function.
type what struct {
	name   string
	weight int // of all weights, how often it comes
	do     func(w *world, o op)
}

func kinds() []what {
	return []what{
		// What users do.
		{"run", 60, (*world).run},
		{"together", 24, (*world).together},
		{"stop", 24, (*world).stop},
		{"start", 18, (*world).start},
		{"restart", 18, (*world).restart},
		{"remove", 15, (*world).remove},
		{"connect", 9, (*world).connect},
		{"disconnect", 9, (*world).disconnect},
		{"network create", 18, (*world).create},
		{"network rm", 9, (*world).networkRm},
		{"node rm", 4, (*world).nodeRm},
		{"look", 4, (*world).look},
		// What happens to hosts.
		{"kill agent", 6, (*world).killAgent},
		{"crash at a write", 15, (*world).crashAtWrite},
		{"stop agent", 3, (*world).stopAgent},
		{"start agent", 75, (*world).startAgent},
		{"power off", 3, (*world).powerOff},
		{"power on", 30, (*world).powerOn},
		{"engine restart", 6, (*world).engineRestart},
		// What happens between hosts and store.
		{"partition", 6, (*world).partition},
		{"blind", 4, (*world).blind},
		{"heal", 18, (*world).heal},
		{"store cut", 3, (*world).storeCut},
		{"store back", 12, (*world).storeBack},
		{"lose replies", 6, (*world).loseReplies},
		{"late writes", 6, (*world).lateWrites},
		{"deliver", 6, (*world).deliver},
		{"chaos", 3, (*world).chaos},
		{"calm", 6, (*world).calm},
		{"backup", 5, (*world).backup},
		{"restore", 4, (*world).restore},
		{"wipe", 1, (*world).wipe},
		// Time.
		{"wait", 24, (*world).wait},
		{"quiet", 0, func(w *world, _ op) { w.beQuiet() }},
	}
}
