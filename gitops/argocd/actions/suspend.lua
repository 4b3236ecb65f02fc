-- Pods save and end; checkpoints are kept.
obj.spec.suspend = true
return obj
