-- Health of an RLHFJob, by its conditions. What is being deleted is Progressing without this script.
local health = { status = "Progressing", message = "No operator has seen this generation yet." }

local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

-- Ready comes last: it is False as well where a job has failed or is suspended.
local order = {
  { "Stalled", "Degraded" },
  { "ApprovalNeeded", "Progressing" },
  { "Reconciling", "Progressing" },
  { "Suspended", "Suspended" },
  { "Ready", "Healthy" },
}
for _, pair in ipairs(order) do
  local condition = conditions[pair[1]]
  if condition ~= nil and condition.status == "True" then
    health.status = pair[2]
    health.message = condition.message
    return health
  end
end
return health
